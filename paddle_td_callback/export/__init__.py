"""What a person or another tool takes away from a recording: one format a file."""
