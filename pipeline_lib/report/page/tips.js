// Shows what a mark or a tree's step says on hover, focus or touch, and marks the path to a step. Texts are set as text.
(() => {
  const tip = document.getElementById("tip");
  let lit = [];

  const place = (x, y) => {
    const box = tip.getBoundingClientRect(), room = document.documentElement;
    const left = Math.min(Math.max(8, x + 14), Math.max(8, room.clientWidth - box.width - 8));
    const below = y + 18, above = y - box.height - 14;
    tip.style.left = `${left}px`;
    tip.style.top = `${below + box.height < room.clientHeight || above < 8 ? below : above}px`;
  };

  const pathOf = (node) => {
    const path = [];
    for (let at = node; at; at = at.parentElement.querySelector(`[data-node="${at.dataset.parent}"]`)) path.push(at);
    return path;
  };

  const show = (mark, x, y) => {
    hide();
    const [head, ...rest] = mark.dataset.tip.split("\n");
    const title = document.createElement("b");
    title.textContent = head;
    const step = mark.querySelector(".step");
    const text = document.createElement("span");
    text.textContent = rest.join("\n");
    tip.replaceChildren(title, text);
    if (step) {
      const body = document.createElement("p");
      body.textContent = step.textContent.trim();
      tip.append(body);
    }
    tip.hidden = false;
    if (mark.classList.contains("node")) {
      lit = pathOf(mark);
      lit.forEach((node) => node.classList.add("lit"));
    }
    place(x, y);
  };

  const hide = () => {
    tip.hidden = true;
    lit.forEach((node) => node.classList.remove("lit"));
    lit = [];
  };

  const markOf = (event) => event.target.closest?.("[data-tip]");
  document.addEventListener("pointerover", (event) => {
    const mark = markOf(event);
    if (mark) show(mark, event.clientX, event.clientY);
    else hide();
  });
  document.addEventListener("pointermove", (event) => {
    if (!tip.hidden && markOf(event)) place(event.clientX, event.clientY);
  });
  document.addEventListener("focusin", (event) => {
    const mark = markOf(event);
    if (!mark || !mark.matches(":focus-visible")) return;
    const box = mark.getBoundingClientRect();
    show(mark, box.left, box.bottom - 12);
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });
  document.addEventListener("scroll", hide, { passive: true, capture: true });
})();
