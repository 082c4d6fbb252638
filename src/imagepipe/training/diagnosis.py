"""What the figures of train and val say about bias and variance, and what to try next: a rule of thumb."""

CLEAR = 0.03  # accuracy above the baseline, or half of what is left to 1, up to which next to nothing is learnt
WIDE = 0.05  # accuracy on train above that on val from which the gap is wide
WANTING = 0.90  # accuracy on train below which even the train images are not learnt
GOOD = "train and val are close, and both are good: more images, or a larger model for longer, are what is left."


def suggest_remedy(train: float, val: float, baseline: float) -> str:
    """One sentence from the accuracies on train and val and that of always the most frequent class, all in [0, 1].

    Bias (train is not learnt) comes before variance (the gap is wide), since its remedy widens the gap.
    """
    if val <= baseline + min(CLEAR, (1 - baseline) / 2):
        return (
            "val is hardly better than always saying the most frequent class: look at the images and their labels, "
            "then at train.lr and train.normalize."
        )
    is_wide = train - val >= WIDE
    if train < WANTING:
        second = "; the gap to val is wide, too (variance), but comes second" if is_wide else ""
        return (
            "even train is not learnt (bias): more epochs, a larger model, another train.lr, or less augmentation"
            f"{second}."
        )
    if is_wide:
        return (
            "train is learnt by heart (variance): more images, augmentation, dropout, weight decay, or a smaller model."
        )
    return GOOD
