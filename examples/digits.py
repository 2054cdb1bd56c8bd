"""The 8 x 8 digits of scikit-learn made long-tailed, and where every example starts from."""

import sys

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import imbsam_jax as ij

# The examples take the number of steps: `python examples/plain_jax.py 100`.
STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 400
HIDDEN, CLASSES, BATCH = 32, 10, 64

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
images, test_images, labels, test_labels = train_test_split(
    images, labels, test_size=500, stratify=labels, random_state=0
)
# From 120 zeros, each class fewer, to 6 nines.
counts = ij.long_tail_counts(CLASSES, 120, 20)
kept = np.concatenate([np.flatnonzero(labels == c)[:n] for c, n in enumerate(counts)])
images, labels = images[kept], labels[kept].astype(np.int32)


def batches():
    """STEPS times (images float32[64, 64], labels int32[64]), the same for every example."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        rows = rng.choice(len(labels), BATCH, replace=False)
        yield images[rows], labels[rows]


def first_weights():
    """(kernel [64, 32], bias [32], kernel [32, 10], bias [10]), the same for every example."""
    rng = np.random.default_rng(1)
    first = rng.normal(scale=1 / 8, size=(64, HIDDEN))
    last = rng.normal(scale=HIDDEN**-0.5, size=(HIDDEN, CLASSES))
    return [np.float32(w) for w in (first, np.zeros(HIDDEN), last, np.zeros(CLASSES))]


def report(logits):
    """Prints the accuracy of each class of the test set, the rarest last."""
    right = np.argmax(logits, axis=1) == test_labels
    recalls = [100 * right[test_labels == c].mean() for c in range(CLASSES)]
    print("recall in %, frequent to rare:", " ".join(f"{recall:.0f}" for recall in recalls))
    print(f"balanced accuracy: {np.mean(recalls):.1f}%")
