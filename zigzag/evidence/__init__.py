"""`make evidence`: methods, criteria and shares measured at full strength, and the page about them."""
