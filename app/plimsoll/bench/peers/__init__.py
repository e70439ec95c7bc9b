"""Plimsoll beside other embedding programs on the same weights: `plimsoll bench peers`."""
