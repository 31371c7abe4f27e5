"""iiad: train, profile, plan, distil and run iterative Transformers."""
