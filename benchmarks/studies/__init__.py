"""Studies of networks that do not exist yet, each with the command that makes its figures."""
