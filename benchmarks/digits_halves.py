"""The handwritten digits of scikit-learn in two halves, to learn from and to judge by: recipes/study/digits.yaml."""

import argparse
from pathlib import Path

from digits import write_images
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/study/digits_images"), help="where to")
    arguments = parser.parse_args()
    scans, labels = load_digits(return_X_y=True)
    halves = train_test_split(scans.reshape(-1, 8, 8), labels, test_size=0.5, random_state=0, stratify=labels)
    learned, judged, learned_labels, judged_labels = halves
    write_images(arguments.folder / "learn", learned, learned_labels)
    write_images(arguments.folder / "judge", judged, judged_labels)


if __name__ == "__main__":
    main()
