"""`scaling ui`: the MLflow UI on a study's store, with the link that opens the study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.console import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, CommandFailed, say, tell
from orchestrator.place import Place

if TYPE_CHECKING:
    from orchestrator.study import Study


def open_ui(study: Study, port: int | None) -> int:
    """Serve until interrupted; a store that is a server has its own UI, whose link is printed. The exit code."""
    from orchestrator.ui import UiError, is_remote, start_ui, study_link

    place = Place.of(study)
    experiment_id = place.store.open_for_reading().experiment_of(study.name)
    if experiment_id is None:
        raise CommandFailed(EXIT_USAGE, f"study {study.name} is not in {place.store.shown}: use `scaling run` first")
    if is_remote(place.store.uri):
        say(study_link(place.store.uri, experiment_id))
        return EXIT_DONE
    tell("starting the MLflow UI (about ten seconds)")
    artifacts = place.store.artifact_root or place.home.mlflow_artifacts
    try:
        server = start_ui(place.store.uri, artifacts, place.home.root / "mlflow-ui.log", port)
    except UiError as error:
        raise CommandFailed(EXIT_FAILED, str(error)) from error
    say(study_link(server.url, experiment_id))
    tell("Ctrl-C ends it")
    try:
        return server.wait()
    except KeyboardInterrupt:
        return EXIT_DONE
    finally:
        server.stop()
