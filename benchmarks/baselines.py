"""What the package is measured against: plain loops and plain PyTorch, independent of it."""
