"""Programs that build, not programs that run: nothing here is part of what a user installs."""
