"""Top-1 errors in percent that the paper reports, to compare with ours."""

CIFAR100 = {  # WRN-28-10: mean and standard deviation of five runs
    "baseline": (18.72, 0.24),
    "dks": (17.24, 0.22),
    "baseline-dropout": (18.64, 0.19),
    "dks-dropout": (16.71, 0.17),
}
IMAGENET = {  # ResNet-18, ResNet-50 and ResNet-152
    "baseline": (31.06, 25.47, 22.45),
    "ds": (30.46, 25.09, 21.99),
    "dks": (28.68, 23.53, 20.98),
}


def error(row: str) -> str:
    """Return the error on CIFAR-100, mean ± std; empty if the paper does not report the row."""
    return "{:.2f} ± {:.2f}".format(*CIFAR100[row]) if row in CIFAR100 else ""


def difference(one: str, other: str) -> tuple[str, str]:
    """Return the difference of two rows on CIFAR-100 and on ImageNet; empty if not reported."""
    cifar = imagenet = ""
    if one in CIFAR100 and other in CIFAR100:
        cifar = f"{CIFAR100[one][0] - CIFAR100[other][0]:+.2f}"
    if one in IMAGENET and other in IMAGENET:
        pairs = zip(IMAGENET[one], IMAGENET[other], strict=True)
        imagenet = ", ".join(f"{a - b:+.2f}" for a, b in pairs)
    return cifar, imagenet
