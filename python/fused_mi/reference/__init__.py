"""Plain torch implementations: any device, any floating dtype, differentiable twice; the oracle of
every fused kernel."""
