"""Ways to open a gang: `inline` on this machine without Ray, `ray` on a cluster."""
