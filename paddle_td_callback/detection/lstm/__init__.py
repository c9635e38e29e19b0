"""The noise detector: an LSTM over training dynamics."""
