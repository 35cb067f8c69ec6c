"""What a session's trials say of each of its arms."""
