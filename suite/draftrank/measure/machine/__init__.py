"""What the machine is, and what else it did while a session ran."""
