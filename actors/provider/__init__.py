"""Network providers of clouds: asked for addresses that pods get, told of those that are released."""
