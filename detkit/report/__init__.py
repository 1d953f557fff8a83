"""What an evaluation shows: its numbers as one dict, and the HTML page made of them. Imports no torch."""
