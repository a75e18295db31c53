"""Two programs on eventspine: `orders`, the small one, and `flights`, the demo on real data."""
