"""Wrong lines of networks and losses."""

from changes.change import of

NETWORKS = [
    *of(
        "models/attention.py",
        "models/test_attention.py",
        ("[:, :, 0] + maps", "[:, :, 0]"),
        ("maps[:, :, None], inside)", "maps[:, :, None])"),
    ),
    *of(
        "losses/soft_targets.py",
        "losses/test_soft_targets.py",
        ("2 * logits.shape[-1] * jnp.sum(counts, dtype=jnp.float32)", "2.0 * logits.shape[-1] * counts.size"),
        ("jnp.log(fused) / temperature", "jnp.log(fused) * temperature"),
    ),
    *of(
        "losses/flaws.py",
        "losses/test_flaws.py",
        ("reach = side // part // 2", "reach = side // part"),
        ("2 * (side - 1) - at", "2 * side - 1 - at"),
        ("return mine <= others", "return mine < others"),
        ("* (reach - 1) + 0.8", "* reach + 0.8"),
    ),
    *of(
        "models/critic.py",
        "models/test_discriminator.py models/test_critic.py",
        ("            if number > 1:\n", "            if number > 2:\n"),
        ("nn.leaky_relu(x, 0.2)", "nn.leaky_relu(x, 0.1)"),
        ("(x.shape[-1] + 1) // 2", "x.shape[-1]"),
        ("max(1, 3 - side)", "1"),
    ),
    *of(
        "models/encoders/unet.py", "models/test_unet.py", ("return nn.leaky_relu(y +", "return 1.1 * nn.leaky_relu(y +")
    ),
    *of(
        "losses/cross_entropy.py",
        "losses/test_losses.py losses/test_adversarial.py",
        ("(label < classes)", "(label <= classes)"),
        ("jax.lax.stop_gradient(weight) * cross", "weight * cross"),
        ("jnp.maximum(number - 1, 0)", "jnp.maximum(number, 0)"),
        ("included & (error >= bound)", "included & (error > bound)"),
    ),
    *of(
        "losses/adversarial.py",
        "losses/test_adversarial.py",
        ("taken_for_real(-score, is_fake)", "taken_for_real(-score, ~is_real)"),
        ("jnp.where(is_real[:, None], jax.lax.stop_gradient(features), features)", "features"),
    ),
    *of(
        "losses/contrast.py",
        "losses/test_contrast.py",
        ("[None, :] & ~jnp.eye(classes, dtype=bool)", "[None, :] | ~jnp.eye(classes, dtype=bool)"),
        (
            "(label[:, None] == jnp.arange(classes)[None]) & valid[:, None]",
            "(label[:, None] == jnp.arange(classes)[None])",
        ),
        ('precision="highest") / (length[key] * temperature)', 'precision="highest") / length[key]'),
        ("return jax.nn.logsumexp(jnp.append(far, near)) - near", "return jax.nn.logsumexp(far) - near"),
    ),
    *of("losses/reconstruction.py", "losses/test_losses.py", (" * prediction.shape[-1]", "")),
    *of(
        "models/decoders/pspnet.py",
        "models/test_pspnet.py",
        ("-(-(cell + 1) * extent // bins)", "(cell + 1) * extent // bins"),
        (
            "_cells(bins, x.shape[axis], _extent(x, valid)[:, axis - 1])",
            "_cells(bins, x.shape[axis], _extent(x, None)[:, axis - 1])",
        ),
        ("extent_out=_extent(like, valid)", "extent_out=_extent(like, None)"),
        ("levels = [keep_valid(x, valid)]", "levels = [jnp.zeros_like(x)]"),
    ),
    *of(
        "models/decoders/classifier.py",
        "models/test_pspnet.py",
        ("own(x, valid)", "own(x)"),
        ("broadcast_dims=(1, 2), ", ""),
    ),
    *of(
        "models/decoders/deeplab_v2.py",
        "models/test_deeplab_v2.py",
        ('name=f"atrous{index}")(x, valid)', 'name=f"atrous{index}")(x)'),
        ("dilation=rate, ", ""),
        ("return output, x", "return output, output"),
    ),
    *of(
        "models/network.py",
        "models/test_pspnet.py",
        ("for kind in {**fusing, **classifying}", "for kind in classifying"),
    ),
    *of(
        "losses/dice.py",
        "losses/test_weighted_losses.py",
        ("overlap = 2 * both", "overlap = both"),
        ("jnp.where(included[..., None], jax.nn", "jnp.where(True, jax.nn"),
        ("jnp.where(pixels > 0, jnp.asarray(class", "jnp.where(pixels >= 0, jnp.asarray(class"),
        ("jnp.sum(dice + entropy)", "jnp.sum(dice)"),
    ),
    *of(
        "losses/cross_entropy.py",
        "losses/test_weighted_losses.py",
        ("weight * unsure**gamma * error", "weight * jnp.exp(-error) ** gamma * error"),
        ("jnp.maximum(-jnp.expm1(-error), _TINY)", "-jnp.expm1(-error)"),
    ),
    *of(
        "models/scales.py",
        "models/test_scales.py evaluation/test_averaged.py",
        ("mirrored(predict(mirrored(image, valid), valid), valid)", "predict(mirrored(image, valid), valid)"),
    ),
    *of(
        "models/dot_product_attention.py",
        "models/test_dot_product_attention.py models/test_attention.py",
        ("jnp.where(seen[:, None], scores, _UNSEEN)", "scores"),
        ("scores.max(axis=-1, keepdims=True)", "scores.mean(axis=-1, keepdims=True)"),
        ("@jax.checkpoint\n", ""),
        (" * query.shape[-1] ** -0.5", ""),
        ("query.shape[-1] % 8 == 0 and ", ""),
    ),
]
