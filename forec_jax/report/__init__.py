"""One page that shows what runs found: HTML that is whole in itself (`forec-jax report`)."""

from forec_jax.report.charts import Chart, Curve, line_chart
from forec_jax.report.page import Example, Picture, Report, RunView, page

__all__ = ["Chart", "Curve", "Example", "Picture", "Report", "RunView", "line_chart", "page"]
