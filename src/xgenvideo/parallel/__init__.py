"""How ranks are used: the arithmetic of a layout, and what one rank knows of the others."""
