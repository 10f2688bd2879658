"""Eight virtual CPU devices for every test, set before the first use of a backend."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
