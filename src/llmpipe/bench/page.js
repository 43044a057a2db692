// Draws the plots, and makes legends and tabs work.
//
// By hand is what plotly does not do: one legend for all plots of a workload; colours that are variables of the style sheet, so that
// light and dark need no second set; and drawing only what comes near the screen: ten workloads have dozens of plots, which drawn at
// once would hold up the page for seconds.

"use strict";

(() => {
  const {template, figures} = JSON.parse(document.getElementById("plots").textContent);
  const places = [...document.querySelectorAll(".plot")];
  const config = {displaylogo: false, displayModeBar: false, doubleClick: "reset"};

  // The same, with the variables of the style sheet replaced by what they are now.
  function coloured(value, style) {
    if (typeof value === "string") {
      const match = /^var\((--[\w-]+)\)$/.exec(value);
      return match ? style.getPropertyValue(match[1]).trim() : value;
    }
    if (Array.isArray(value)) {
      return typeof value[0] === "number" ? value : value.map((each) => coloured(each, style));
    }
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, coloured(each, style)]));
    }
    return value;
  }

  // The targets that the legend beside a plot has switched off.
  function switchedOff(place) {
    const buttons = place.closest(".curves")?.querySelectorAll('.legend [aria-pressed="false"]') ?? [];
    return new Set([...buttons].map((button) => Number(button.dataset.target)));
  }

  function draw(place) {
    if (!place.clientWidth) { return; }  // in a tab that is not shown
    const style = getComputedStyle(document.documentElement);
    const {data, layout} = coloured(figures[Number(place.dataset.figure)], style);
    const off = switchedOff(place);
    for (const trace of data) { trace.visible = !off.has(trace.meta); }
    place.dataset.drawn = "1";
    place.dataset.width = place.clientWidth;
    Plotly.react(place, data, {...layout, template: coloured(template, style)}, config);
  }

  function redraw(inside) {
    places.filter((place) => place.dataset.drawn && inside.contains(place)).forEach(draw);
  }

  const near = new IntersectionObserver((entries) => {
    for (const {isIntersecting, target} of entries) {
      if (isIntersecting && !target.dataset.drawn) { draw(target); }
    }
  }, {rootMargin: "500px"});
  places.forEach((place) => near.observe(place));

  // Not plotly's own way, which hears only of the window: a scroll bar or a larger font changes the width as well.
  const widths = new ResizeObserver((entries) => {
    for (const {target, contentRect} of entries) {
      const width = Math.round(contentRect.width);
      if (width && target.dataset.drawn && width !== Number(target.dataset.width)) {
        target.dataset.width = width;
        Plotly.Plots.resize(target);
      }
    }
  });
  places.forEach((place) => widths.observe(place));

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw(document));
  addEventListener("beforeprint", () => places.filter((place) => !place.dataset.drawn).forEach(draw));

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      redraw(button.closest(".curves"));
    });
  }

  function select(tabs, chosen) {
    for (const tab of tabs) {
      const on = tab === chosen;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      const panel = document.getElementById(tab.getAttribute("aria-controls"));
      panel.hidden = !on;
      if (on) { panel.querySelectorAll(".plot").forEach(draw); }
    }
  }

  for (const list of document.querySelectorAll("[role=tablist]")) {
    const tabs = [...list.children];
    tabs.forEach((tab, place) => {
      tab.addEventListener("click", () => select(tabs, tab));
      tab.addEventListener("keydown", (event) => {
        const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
        if (step) {
          const next = tabs[(place + step + tabs.length) % tabs.length];
          next.focus();
          select(tabs, next);
        }
      });
    });
  }
})();
