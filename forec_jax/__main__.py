"""`python -m forec_jax` is `forec-jax`."""

from forec_jax.cli import main

main()
