"""The changes: a file, a text that is in it once, what stands there instead, and the tests that should notice.

Each is a mistake that somebody could make: a sign, a place off by one, a view for another, a mask forgotten.
"""

from typing import NamedTuple


class Change(NamedTuple):
    """One wrong line."""

    file: str
    before: str
    after: str
    tests: tuple[str, ...]


def _of(file: str, tests: str, *pairs: tuple[str, str]) -> list[Change]:
    """The changes of a file that the same tests, named with spaces between, should notice."""
    return [
        Change(
            file if file.startswith("configs/") else f"forec_jax/{file}",
            before,
            after,
            tuple(f"tests/{test}" for test in tests.split()),
        )
        for before, after in pairs
    ]


CHANGES = [
    *_of(
        "export/operators.py",
        "export/test_program.py",
        ("[which, cases[1], cases[0]]", "[which, cases[0], cases[1]]"),
        ("[*low, *high]", "[*high, *low]"),
        ('dilations=list(p["rhs_dilation"])', "dilations=[1, 1]"),
    ),
    *_of(
        "evaluation/tiles.py",
        "evaluation/test_tiles.py",
        ("(first + side + second) // 2", "first + side"),
    ),
    *_of(
        "augment/geometry.py",
        "augment/test_geometry.py",
        ("jnp.maximum(scaled - length, 0) + 1)", "jnp.maximum(scaled - length, 0))"),
        ("window.offset[:, None] < window.scaled", "window.offset[:, None] <= window.scaled"),
        ("window.offset[:, None]) + 1  #", "window.offset[:, None])  #"),
        ("window.offset[:, None] + 0.5) * ratio - 0.5", "window.offset[:, None] + 0.5) * ratio"),
        ("/ jnp.maximum(ratio, 1.0)[..., None]", ""),
        ("label=nearest(rows.label, IGNORE)", "label=nearest(rows.label)"),
        ("clean=bilinear(rows.clean)", "clean=bilinear(rows.strong)"),
        ("strong=bilinear(rows.strong)", "strong=rows.strong"),
        ("valid=nearest(rows.valid)", "valid=nearest(rows.valid) | inside"),
        ("is_ground_truth=nearest(rows.is_ground_truth)", "is_ground_truth=rows.is_ground_truth"),
        ("field[:, :, ::-1]", "field[:, ::-1]"),
        (
            "zip(self.changes, jax.random.split(key, len(self.changes)), strict=True)",
            "((change, key) for change in self.changes)",
        ),
        ("before, after = (zoom, mirror) if", "before, after = ((*zoom, *mirror), ()) if"),
        (
            "row, column = _nearest(high, height), _nearest(wide, width)",
            "row, column = _nearest(high, height), _nearest(high, width)",
        ),
    ),
    *_of(
        "annotations/outline.py",
        "annotations/test_outline.py",
        ("(points > np.array(size[::-1]))", "(points >= np.array(size[::-1]))"),
        ("np.stack([crosses, ends], axis=1)]", "np.stack([crosses, starts], axis=1)]"),
        ("np.array([[cos, sin], [-sin, cos]])", "np.array([[cos, -sin], [sin, cos]])"),
        ("if length > _LONGEST:", "if length > 9 * _LONGEST:"),
    ),
    *_of(
        "annotations/runs.py",
        "annotations/test_runs.py",
        ("if len(counts) > 2 else number", "if len(counts) > 1 else number"),
        ("number -= (bits & 16) << (shift - 4)", "number -= (bits & 16) << (shift - 5)"),
        ("np.arange(len(counts)) % 2 == 1", "np.arange(len(counts)) % 2 == 0"),
        ("pixels.reshape(size[::-1]).T", "pixels.reshape(size)"),
        ("sum(counts) != size[0] * size[1]", "sum(counts) > size[0] * size[1]"),
    ),
    *_of(
        "annotations/paint.py",
        "annotations/test_write.py annotations/test_coco.py annotations/test_cvat.py",
        ("(shapes[k].layer, -areas[k])", "(shapes[k].layer, areas[k])"),
        ("mask & covered & (label != value)", "mask & covered"),
        ("key=lambda shape: shape.layer)", "key=lambda shape: -shape.layer)"),
        ("rule.index.get(shape.label, rule.uncovered)", "rule.index.get(shape.label, IGNORE)"),
    ),
    *_of(
        "annotations/write.py",
        "annotations/test_write.py",
        ("return drawn.size, drawn.size == stored", "return drawn.size, drawn.size == shown"),
        ("if opened.orientation >= 5 else shown", "if opened.orientation >= 7 else shown"),
        ('return (stored, True) if follow == "file"', 'return (stored, True) if follow == "display"'),
        ("if val and len(val) == len(labelled):", "if False:"),
        ("if painted.objects or request.empty == BACKGROUND:", "if drawn.shapes or request.empty == BACKGROUND:"),
    ),
    *_of(
        "annotations/photos.py",
        "annotations/test_photos.py annotations/test_labelme.py",
        ('or ".." in path.parts', ""),
        ("if len(last) == 1:", "if last:"),
        ('or re.match(r"[A-Za-z]:", name)', ""),
    ),
    *_of(
        "data/transforms.py",
        "data/test_pipeline.py data/test_transforms.py",
        ('part == "unlabelled" and self.unlabelled_plain', "self.unlabelled_plain"),
        ("scale=(1.0, 1.0), flip=False, half", "scale=(1.0, 1.0), half"),
    ),
    *_of(
        "methods/entry.py",
        "test_config.py",
        ("if self.student.student_labelled or completed else", "if self.student.student_labelled else"),
        ("if self.mix_labelled or completed else", "if self.mix_labelled else"),
    ),
    # The view that each network is shown: four of these survived once.
    *_of(
        "methods/parts/views.py",
        "methods/test_mean_teacher.py",
        (
            "teach(unit_image(unlabelled.image)), colour)",
            "teach(colour(colour_u, unit_image(unlabelled.image), unlabelled.valid)), colour)",
        ),
        ("return rows.strong, views", "return rows.clean, views"),
        ("image=rows.clean,", "image=rows.strong,"),
        ("strong=colour(key, clean, part.valid),\n        label=label,", "strong=clean,\n        label=label,"),
        ("jnp.stack([labelled, unlabelled], axis=1)", "jnp.stack([unlabelled, labelled], axis=1)"),
        ("asked = part.valid & (rows.label == IGNORE)", "asked = rows.label == IGNORE"),
    ),
    *_of(
        "methods/parts/views.py",
        "methods/test_start.py methods/test_s4gan.py",
        ("labelled_row[:, None, None] | ~hidden", "labelled_row[:, None, None] | hidden"),
        ("jnp.where(gone, 0.0, views.confidence)", "views.confidence"),
        (
            "asked = views.valid & ~views.is_ground_truth & (views.label == IGNORE)",
            "asked = views.valid & (views.label == IGNORE)",
        ),
    ),
    *_of(
        "methods/parts/heads.py",
        "methods/test_parts.py methods/test_passes.py methods/test_heads.py",
        ("of_first, stats = forward(stats, first, first_keys)", "of_first, _ = forward(stats, first, first_keys)"),
        (
            "of_others, stats = forward(stats, others, other_keys)",
            "of_others, stats = forward(stats, others, first_keys)",
        ),
        ("jax.tree.map(interleave, of_first, of_others)", "jax.tree.map(interleave, of_others, of_first)"),
        ("if features_of.get(owner, features) is features:", "if True:"),
        ("Term(mean, weight * share)", "Term(mean, weight)"),
    ),
    *_of(
        "methods/parts/ema.py",
        "methods/test_start.py",
        ("max(int(self.start), warmup)", "min(int(self.start), warmup)"),
        ("step >= self.start", "step > self.start"),
        ("state.step < self.start", "state.step <= self.start"),
    ),
    *_of(
        "methods/parts/teacher.py",
        "methods/test_mean_teacher.py",
        ("1.0 / (step.astype(jnp.float32) + 1.0)", "1.0 / (step.astype(jnp.float32) + 2.0)"),
        (
            "optax.incremental_update(params, teacher.params, 1.0 - decay)",
            "optax.incremental_update(params, teacher.params, decay)",
        ),
        ("stats = student_stats\n", "stats = teacher.batch_stats\n"),
    ),
    *_of("methods/parts/ramp.py", "methods/test_ramp.py", ("jnp.cos(jnp.pi * progress)", "jnp.cos(progress)")),
    *_of(
        "methods/parts/terms.py",
        "methods/test_parts.py methods/test_mean_teacher.py methods/test_reco.py",
        ("(views) & (views.confidence > threshold)", "(views) & (views.confidence >= threshold)"),
        ("~views.is_ground_truth & views.valid & (views.label", "~views.is_ground_truth & (views.label"),
        (
            "return jnp.where(candidate, eta, 0.0), jnp.sum(candidate, dtype=jnp.float32)",
            "return jnp.where(candidate, eta, 0.0), jnp.sum(kept, dtype=jnp.float32)",
        ),
        (
            "return kept.astype(jnp.float32), jnp.sum(kept, dtype=jnp.float32)",
            "return kept.astype(jnp.float32), jnp.sum(candidate, dtype=jnp.float32)",
        ),
        ("return views.is_ground_truth & (views.label != IGNORE)", "return views.label != IGNORE"),
    ),
    *_of(
        "methods/parts/vat.py",
        "methods/test_vat.py",
        ("p * (change - jnp.sum(p * change, axis=-1, keepdims=True)) * valid", "p * change * valid"),
    ),
    *_of(
        "methods/parts/background.py",
        "methods/test_parts.py methods/test_auxiliary.py",
        ("views.valid & labelled & (", "labelled & ("),
        ("views.confidence > threshold", "views.confidence >= threshold"),
    ),
    *_of(
        "methods/tasks/reconstruction.py",
        "methods/test_auxiliary.py",
        (
            "views.is_ground_truth & views.valid & (views.label == IGNORE)",
            "views.is_ground_truth & (views.label == IGNORE)",
        ),
        ("painted = included & ~void & ~is_background", "painted = included & ~is_background"),
        ("squared_error(output, target, included & ~row)", "squared_error(output, target, included)"),
        (
            "jnp.where(painted[..., None], _target_pixels(views.image, self.pixel_space), 0.0)",
            "_target_pixels(jnp.where(painted[..., None], views.image, 0.0), self.pixel_space)",
        ),
    ),
    *_of(
        "methods/tasks/reco.py",
        "methods/test_reco.py",
        ("label) <= self.query_threshold", "label) < self.query_threshold"),
        ("jnp.sum(sample.means.number > 0, dtype=jnp.float32)", "jnp.sum(sample.draws.active, dtype=jnp.float32)"),
        ("nothing_said & views.labelled_row[:, None, None] & (", "nothing_said & ("),
    ),
    *_of(
        "methods/s4gan.py",
        "methods/test_s4gan.py test_config.py",
        ("feature_matching_weight: float = option(0.1,", "feature_matching_weight: float = option(1.0,"),
        ("Term(fake, 0.5)", "Term(fake, 1.0)"),
    ),
    *_of(
        "methods/parts/critic.py",
        "methods/test_s4gan.py methods/test_adv_semseg.py test_config.py",
        ("b1=0.9, b2=0.99", "b1=0.5, b2=0.99"),
        ("judge(critic, jax.lax.stop_gradient(shown))", "judge(critic, shown)"),
        ("judge(jax.lax.stop_gradient(critic), shown)", "judge(critic, shown)"),
    ),
    *_of(
        "methods/adv_semseg.py",
        "methods/test_adv_semseg.py",
        ("truth = labelled_pixels(views) & views.valid", "truth = labelled_pixels(views)"),
        ("predicted = truth if self.partial_labels else truth | others", "predicted = truth | others"),
        ("warmup=int(self.trust_start)", "warmup=0"),
    ),
    *_of(
        "methods/cct.py",
        "methods/test_cct.py",
        ("target = jax.lax.stop_gradient(jax.nn.softmax(logits, axis=-1))", "target = jax.nn.softmax(logits, axis=-1)"),
        ("aims = seen.views.valid & ~seen", "aims = seen.views.valid | ~seen"),
        ("return shown_where(seen.fused, background)", "return shown_where(seen.fused, ~background)"),
        ("exponential_rise(state.step - int(self.start), self.ramp)", "exponential_rise(state.step, 2 * self.ramp)"),
        ("(_SURE - 1 / classes)", "_SURE"),
    ),
    *_of(
        "methods/ucc.py",
        "methods/test_ucc.py",
        ("frozen = jax.lax.stop_gradient(student)", "frozen = student"),
        ("return jax.lax.stop_gradient(weight)", "return weight"),
        ("logits, views = outputs[head].output, said[labeller]", "logits, views = outputs[head].output, said[head]"),
        ("jnp.exp(-weighted_divergence", "jnp.exp(weighted_divergence"),
    ),
    *_of(
        "methods/pseudoseg.py",
        "methods/test_pseudoseg.py",
        (">= self.tag_threshold", ">= 0"),
        ("pseudo._replace(extra=fused)", "pseudo._replace(extra=jnp.roll(fused, 1, 0))"),
        ("jnp.any(known, axis=(1, 2)))", "jnp.any(known | True, axis=(1, 2)))"),
        ("(student, attention)), student.batch_stats", "(student, attention)), attention.batch_stats"),
    ),
    *_of(
        "methods/parts/refined_maps.py",
        "methods/test_pseudoseg.py",
        ("tags.output - bias[None, None, None]", "tags.output"),
        ("seen = jax.lax.stop_gradient(Seen(features, maps, inside))", "seen = Seen(features, maps, inside)"),
    ),
    *_of(
        "models/attention.py",
        "models/test_attention.py",
        ("maps) + maps", "maps)"),
        ("/ self.channels**0.5", "/ self.channels"),
        ("likeness, -1e9)", "likeness, 0)"),
    ),
    *_of(
        "losses/soft_targets.py",
        "losses/test_soft_targets.py",
        ("2 * logits.shape[-1] * jnp.sum(counts)", "2 * logits.shape[-1] * counts.size"),
        ("jnp.log(fused) / temperature", "jnp.log(fused) * temperature"),
    ),
    *_of(
        "methods/ecs.py",
        "methods/test_ecs.py",
        ("target = jnp.where(right, classes, views.label)", "target = jnp.where(right, views.label, classes)"),
        ("own, verdict)", "verdict, own)"),
        ("mean_cross_entropy(judging,", "mean_cross_entropy(learning,"),
        ("jnp.where(right, self.right_weight, 1.0)", "jnp.where(right, 1.0, self.right_weight)"),
    ),
    *_of(
        "methods/parts/perturbations.py",
        "methods/test_cct.py",
        ("jnp.where(known, strength, -jnp.inf)", "strength"),
        ("(around - cut + 1)", "(around - cut)"),
        ("length - jnp.argmax(occupied[:, ::-1], axis=1) - first", "length - jnp.argmax(occupied[:, ::-1], axis=1)"),
    ),
    *_of(
        "methods/gct.py",
        "methods/test_gct.py",
        (
            "bad = counted & (own.flaw > self.threshold) & (other",
            "bad = counted & (own.flaw > self.threshold) | (other",
        ),
        ("jnp.square(own.judging)", "jnp.square(own.learning)"),
        ("return views.valid | (self", "return views.valid & (self"),
        ("return jax.lax.stop_gradient(jnp.where(keeps", "return (jnp.where(~keeps"),
    ),
    *_of(
        "losses/flaws.py",
        "losses/test_flaws.py",
        ("reach = side // part // 2", "reach = side // part"),
        ("2 * (side - 1) - at", "2 * side - 1 - at"),
        ("return mine <= others", "return mine < others"),
        ("* (reach - 1) + 0.8", "* reach + 0.8"),
    ),
    *_of(
        "methods/vat.py",
        "methods/test_vat.py",
        ("aims = views.valid & ~views.is_ground_truth", "aims = views.valid"),
        ("lambda seen: behind(std * seen), image / std", "behind, image"),
        ("error=lambda logits, _, weight: weighted_divergence(logits, target, weight)", "pixel_weight=1.0"),
    ),
    *_of(
        "models/critic.py",
        "models/test_discriminator.py models/test_critic.py",
        ("            if number > 1:\n", "            if number > 2:\n"),
        ("nn.leaky_relu(x, 0.2)", "nn.leaky_relu(x, 0.1)"),
        ("(x.shape[-1] + 1) // 2", "x.shape[-1]"),
        ("max(1, 3 - side)", "1"),
    ),
    *_of(
        "models/encoders/unet.py", "models/test_unet.py", ("return nn.leaky_relu(y +", "return 1.1 * nn.leaky_relu(y +")
    ),
    *_of(
        "configs/tags.py",
        "test_tags_runs.py",
        ('"class_weight": 1e-3, "mask_loss"', '"class_weight": 1e-2, "mask_loss"'),
    ),
    *_of(
        "training/optimizer.py",
        "training/test_optimizer.py training/test_contracts.py",
        ("(1.0 - progress) ** power", "(1.0 - progress**power)"),
        ("(step + 1) / (warmup + 1)", "step / (warmup + 1)"),
        ("larger(step - hold, 0)", "larger(step, 0)"),
        ("HEADS: rule(o.head_lr_multiplier)", "HEADS: rule(1.0)"),
        ("leaf.ndim > 1", "leaf.ndim > 0"),
    ),
    *_of(
        "training/step.py",
        "training/test_step.py training/test_contracts.py",
        ("teacher=teacher, memory=aux.memory", "memory=aux.memory"),
        ("term.weight * term.mean.value()", "term.mean.value()"),
        (
            "rows.reshape(rows.shape[0] // parts, parts, *rows.shape[1:])",
            "rows.reshape(parts, rows.shape[0] // parts, *rows.shape[1:]).swapaxes(0, 1)",
        ),
    ),
    *_of(
        "losses/cross_entropy.py",
        "losses/test_losses.py losses/test_adversarial.py",
        ("(label < classes)", "(label <= classes)"),
        ("jax.lax.stop_gradient(weight) * cross", "weight * cross"),
        ("jnp.maximum(number - 1, 0)", "jnp.maximum(number, 0)"),
        ("included & (error >= bound)", "included & (error > bound)"),
    ),
    *_of(
        "losses/adversarial.py",
        "losses/test_adversarial.py",
        ("taken_for_real(-score, is_fake)", "taken_for_real(-score, ~is_real)"),
        ("jnp.where(is_real[:, None], jax.lax.stop_gradient(features), features)", "features"),
    ),
    *_of(
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
    *_of("losses/reconstruction.py", "losses/test_losses.py", (" * prediction.shape[-1]", "")),
    *_of(
        "augment/mixing.py",
        "augment/test_mixing.py",
        ("jnp.roll(x, -1, axis=0)", "jnp.roll(x, 1, axis=0)"),
        ("valid=rows.valid & ~cut", "valid=rows.valid"),
        (
            "partner.label[..., None] == jnp.arange(self.classes)[None, None, None]) & partner.valid[..., None]",
            "partner.label[..., None] == jnp.arange(self.classes)[None, None, None])",
        ),
    ),
    *_of(
        "augment/boxes.py",
        "augment/test_mixing.py",
        ("low = width // 2 + 1", "low = width // 2 - 1"),
        ("0, size) - half", "0, size)"),
    ),
    *_of(
        "augment/photometric.py",
        "augment/test_photometric.py",
        ("options.contrast), valid)", "options.contrast))"),
        ("jnp.where(j > 0, kernel(i + j), 0.0)", "jnp.where(j >= 0, kernel(i + j), 0.0)"),
        ("max(0.0, 1.0 - strength)", "1.0"),
        (
            "LUMA[1] * image[..., 1:2] + LUMA[2] * image[..., 2:3]",
            "LUMA[2] * image[..., 1:2] + LUMA[1] * image[..., 2:3]",
        ),
    ),
    *_of(
        "data/transforms.py",
        "data/test_transforms.py",
        ("valid[:height, :width] = True", "valid[:] = True"),
        ("rng.uniform(low, 1.0) if rng.random() < 0.5", "rng.uniform(low, 1.0) if rng.random() < 0.9"),
        (
            "part is None else window.cut(part, Image.Resampling.NEAREST)",
            "part is None else window.cut(part, Image.Resampling.BILINEAR)",
        ),
        ("self._padded(confidence, 0)", "self._padded(confidence, 255)"),
        ("rng.integers(scaled_w - out_w + 1)", "rng.integers(scaled_h - out_h + 1)"),
    ),
    *_of(
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
    *_of(
        "models/decoders/classifier.py",
        "models/test_pspnet.py",
        ("own(x, valid)", "own(x)"),
        ("broadcast_dims=(1, 2), ", ""),
    ),
    *_of(
        "models/decoders/deeplab_v2.py",
        "models/test_deeplab_v2.py",
        ('name=f"atrous{index}")(x, valid)', 'name=f"atrous{index}")(x)'),
        ("dilation=rate, ", ""),
        ("return output, x", "return output, output"),
    ),
    *_of(
        "models/network.py",
        "models/test_pspnet.py",
        ("for kind in {**fusing, **classifying}", "for kind in classifying"),
    ),
    *_of(
        "experiment/layout.py",
        "test_layout.py",
        ("stdev(values) if", "0.0 if"),
        ('f"\\\\{letter}" if letter in', 'f"{letter}" if letter in'),
        ('return ["", "", "0"]', 'return ["0", "", "0"]'),
    ),
    *_of(
        "experiment/jobs.py",
        "test_jobs.py",
        ("process_group=0", "process_group=None"),
        ("if interruption.received and not told:", "if interruption.received:"),
        ("not interruption.received and (job", "(job"),
        ("os.killpg(one.process.pid, 9)", "pass"),
        ("os.sched_setaffinity(0, before)", "pass"),
        ('open("ab")', 'open("wb")'),
    ),
    *_of(
        "experiment/comparison.py",
        "test_comparison.py",
        ("apart.setdefault(experiment_of(run), [])", 'apart.setdefault("one", [])'),
        ("if (one.question.sha256, one.question.protocol) == (", "if () != ("),
        ("if step < steps:", "if step < 0:"),
        ("100 * (one.miou - two.miou)", "100 * (two.miou - one.miou)"),
        ('options.get("(labelled images)", options["data.labelled"])', "0"),
    ),
    *_of(
        "experiment/sweep_state.py",
        "test_sweep.py test_comparison.py",
        ("given[key] = stored.get(key)", "pass"),
        ('.get("config") == written', '.get("config") is not None'),
        ('path.is_absolute() or ".." in path.parts', "False"),
    ),
    *_of(
        "commands/sweep.py",
        "test_sweep.py",
        ("if not state.done]", "]"),
        ("(FAILED if failed else 0)", "0"),
        ("(c.steps - state.step) *", "c.steps * 2 *"),
    ),
    *_of(
        "data/chosen.py",
        "data/test_chosen.py",
        ("chosen.index(k) + 1 if", "chosen.index(k) if"),
        ("table[: len(self.new)] = self.new", "table[:] = 0"),
        ("if any(dataset.palette[k])", "if True"),
    ),
    *_of(
        "losses/dice.py",
        "losses/test_weighted_losses.py",
        ("overlap = 2 * both", "overlap = both"),
        ("jnp.where(included[..., None], jax.nn", "jnp.where(True, jax.nn"),
        ("jnp.where(pixels > 0, jnp.asarray(class", "jnp.where(pixels >= 0, jnp.asarray(class"),
        ("jnp.sum(dice + entropy)", "jnp.sum(dice)"),
    ),
    *_of(
        "losses/cross_entropy.py",
        "losses/test_weighted_losses.py",
        ("weight * unsure**gamma * error", "weight * jnp.exp(-error) ** gamma * error"),
        ("jnp.maximum(-jnp.expm1(-error), _TINY)", "-jnp.expm1(-error)"),
    ),
    *_of(
        "evaluation/boundary.py",
        "evaluation/test_boundary.py",
        ("constant_values=_OUTSIDE", 'mode="edge"'),
        ("goes_on = (step < distance)", "goes_on = (step <= distance)"),
        ("jnp.round(share", "jnp.floor(share"),
    ),
    *_of(
        "models/scales.py",
        "models/test_scales.py evaluation/test_averaged.py",
        ("mirrored(predict(mirrored(image, valid), valid), valid)", "predict(mirrored(image, valid), valid)"),
    ),
]
