"""Decides: the study, its plan, what runs next, what was learnt."""
