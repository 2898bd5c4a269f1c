"""Model cards: what a repository says about itself, written by the programs that know it, and checked."""
