"""The wire formats that clients speak, one module each; no dialect knows another."""
