"""What is shown: boards ranked from stored sessions, as records, as JSON and as a static site."""
