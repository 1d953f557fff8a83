"""Parts for detkit from outside: detkit finds them by the entry points in pyproject.toml."""
