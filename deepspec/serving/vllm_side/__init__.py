"""What vLLM's own processes import: its folder is put on their path. Nothing of deepspec is needed there."""
