"""The commands, by what they are for; `forec_jax.cli` dispatches to them."""
