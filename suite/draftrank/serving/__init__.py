"""Model servers of other projects, seen from outside: how they are started, asked and ended. One file an engine."""
