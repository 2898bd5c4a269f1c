"""Evaluation: generators and scorers per benchmark, and their statistics."""
