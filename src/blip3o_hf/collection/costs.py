"""What pictures cost, and the ceiling that a collection never passes."""

import math
from decimal import Decimal, InvalidOperation

LEAST, MOST = Decimal("1e-9"), Decimal("1e12")
"""Sums of money; the number of pictures that one pays for, the largest quotient, is exact in `Decimal`."""


def amount(text: str, name: str) -> Decimal:
    """
    A sum of money, exact.

    Raises:
        ValueError: when it is no number from [`LEAST`] to [`MOST`].
    """
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal(-1)
    if not value.is_finite() or not LEAST <= value <= MOST:
        raise ValueError(
            f"{name} must be a number above 0, from {LEAST} to {MOST}, in any one currency. Got {text!r:.40}. "
            f"Example: 0.04."
        )
    return value


class Budget:
    """
    Counts pictures, and says how many more may be asked for.

    Args:
        price (*optional*): of one picture.
        ceiling (*optional*): what all of them together may cost, in the same currency.
        num_pictures: that were drawn before.

    Raises:
        ValueError: when there is a ceiling and no price.

    Example:
        >>> budget = Budget(Decimal("0.1"), Decimal("0.3"))
        >>> budget.count(2)
        >>> budget.num_left, budget.cost
        (1, Decimal('0.2'))
    """

    def __init__(self, price: Decimal | None = None, ceiling: Decimal | None = None, num_pictures: int = 0):
        if ceiling is not None and price is None:
            raise ValueError("A budget needs the price of one picture. There is none. Add --price.")
        self.price = price
        self.ceiling = ceiling
        self.num_pictures = num_pictures

    def count(self, number: int = 1) -> None:
        """So many more pictures were drawn."""
        self.num_pictures += number

    @property
    def num_left(self) -> float:
        """How many more pictures may be asked for; infinite without a ceiling."""
        if self.price is None or self.ceiling is None:
            return math.inf
        return max(0, int(self.ceiling // self.price) - self.num_pictures)

    @property
    def cost(self) -> Decimal | None:
        """Of all pictures so far; `None` without a price."""
        return None if self.price is None else self.price * self.num_pictures
