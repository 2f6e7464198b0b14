"""One Python file per run: `get_config()` returns its `ml_collections.ConfigDict`."""
