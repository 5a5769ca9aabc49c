// Gives what bokeh draws the colours of the page, sorts tables, and says when all is there.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function paint() {
    const text = colour("--faint"), line = colour("--line");
    for (const doc of Bokeh.documents)
      for (const model of doc.all_models ?? []) {
        if ("major_label_text_color" in model)
          model.setv({
            major_label_text_color: text, axis_label_text_color: text, axis_line_color: line,
            major_tick_line_color: line, minor_tick_line_color: null, axis_line_alpha: 1,
          });
        else if ("grid_line_color" in model && model.grid_line_color !== null) model.grid_line_color = line;
      }
  }

  function sort(table, by) {
    const body = table.tBodies[0];
    const rows = [...body.rows].sort((a, b) => b.dataset[by] - a.dataset[by]);
    body.append(...rows);
    for (const head of table.tHead.rows[0].cells) head.classList.toggle("by", head.dataset.by === by);
  }

  for (const table of document.querySelectorAll("table.kinds"))
    for (const head of table.tHead.rows[0].cells)
      if (head.dataset.by) head.addEventListener("click", () => sort(table, head.dataset.by));

  const ready = () => {
    if (Bokeh.documents.length === 0) return setTimeout(ready, 10);
    paint();
    dark.addEventListener("change", paint);
    document.documentElement.dataset.ready = Math.round(performance.now());
  };
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", ready) : ready();
})();
