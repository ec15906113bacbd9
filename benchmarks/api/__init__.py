"""What the control plane takes for an answer while a job trains and many watch."""
