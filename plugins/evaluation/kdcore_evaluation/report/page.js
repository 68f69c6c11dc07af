"use strict";
// Shows the values of plots: for pointers the nearest point, for the keyboard one point after another. Without scripts,
// markers keep the tooltips of their titles, and the tables have the values.
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true");
  document.body.append(tip);
  const reading = document.getElementById("reading");

  for (const frame of document.querySelectorAll(".plot")) {
    const svg = frame.querySelector("svg");
    const points = [...svg.querySelectorAll(".series")].flatMap((series, number) =>
      JSON.parse(series.dataset.values).map(([x, y, text]) => ({x, y, text, series, number})));
    for (const title of svg.querySelectorAll(".series title")) title.remove();
    if (!points.length) continue;
    const ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    ring.setAttribute("class", "ring");
    ring.setAttribute("r", "8");
    let current = null;

    const show = point => {
      current = point;
      ring.setAttribute("cx", point.x);
      ring.setAttribute("cy", point.y);
      svg.append(ring);
      tip.replaceChildren(Object.assign(document.createElement("strong"), {textContent: point.series.dataset.label}),
        document.createElement("br"), point.text);
      tip.hidden = false;
      const scale = svg.getBoundingClientRect(), unit = scale.width / svg.viewBox.baseVal.width;
      const left = scale.left + point.x * unit, top = scale.top + point.y * unit;
      const width = document.documentElement.clientWidth;
      tip.style.left = `${Math.max(4, Math.min(left - tip.offsetWidth / 2, width - tip.offsetWidth - 4)) + scrollX}px`;
      const above = top - tip.offsetHeight - 14;
      tip.style.top = `${(above > 0 ? above : top + 14) + scrollY}px`;
    };
    const hide = () => {
      current = null;
      ring.remove();
      tip.hidden = true;
    };
    const nearest = (x, y, from = points) => from.reduce((best, point) =>
      Math.hypot(point.x - x, point.y - y) < Math.hypot(best.x - x, best.y - y) ? point : best);
    const read = point => {
      show(point);
      reading.textContent = `${point.series.dataset.label}: ${point.text}`;
    };
    const point_at = event => {
      const box = svg.getBoundingClientRect(), unit = svg.viewBox.baseVal.width / box.width;
      const x = (event.clientX - box.left) * unit, y = (event.clientY - box.top) * unit, point = nearest(x, y);
      if (Math.hypot(point.x - x, point.y - y) < 40) show(point); else hide();
    };

    frame.tabIndex = 0;
    frame.setAttribute("role", "application");
    frame.setAttribute("aria-roledescription", "plot");
    frame.setAttribute("aria-label", `${frame.dataset.name}. Arrow keys read the values.`);
    svg.addEventListener("pointermove", point_at);
    svg.addEventListener("pointerdown", point_at);
    svg.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") hide(); });
    frame.addEventListener("blur", hide);
    frame.addEventListener("keydown", event => {
      const own = current ? points.filter(point => point.series === current.series) : [];
      const place = own.indexOf(current), last = Math.max(...points.map(point => point.number));
      const other = step => {
        for (let number = current.number + step; number >= 0 && number <= last; number += step) {
          const there = points.filter(point => point.number === number);
          if (there.length) return nearest(current.x, current.y, there);
        }
        return current;
      };
      const moves = {
        ArrowRight: () => own[Math.min(place + 1, own.length - 1)],
        ArrowLeft: () => own[Math.max(place - 1, 0)],
        ArrowDown: () => other(1),
        ArrowUp: () => other(-1),
        Home: () => own[0],
        End: () => own[own.length - 1],
      };
      if (event.key === "Escape") hide();
      else if (event.key in moves) {
        event.preventDefault();
        read(current ? moves[event.key]() : points[0]);
      }
    });
  }
})();
