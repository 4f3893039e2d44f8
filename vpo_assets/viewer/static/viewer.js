// Every page: clips play while they are seen, filters act at once, ids are copied by a click.
"use strict";

const live = "live" in document.body.dataset;

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    for (const video of entry.target.querySelectorAll("video")) {
      if (entry.isIntersecting) {
        video.currentTime = 0; // clips of one card begin together
        video.play().catch(() => {}); // a browser that does not play by itself shows the controls
      } else {
        video.pause();
      }
    }
  }
}, { rootMargin: "100px" });
document.querySelectorAll(".card").forEach((card) => seen.observe(card));

document.querySelectorAll("[data-copy]").forEach((code) => {
  code.title = "copy";
  code.addEventListener("click", async () => {
    await navigator.clipboard?.writeText(code.textContent);
    code.classList.add("copied");
    setTimeout(() => code.classList.remove("copied"), 900);
  });
});

const form = document.querySelector("[data-filter]");
if (form && live) {
  form.addEventListener("change", () => form.requestSubmit());
  form.addEventListener("submit", () => {
    for (const field of form.elements) field.disabled ||= field.value === ""; // short addresses
  });
  window.addEventListener("pageshow", () => {
    for (const field of form.elements) field.disabled = false;
  });
}
if (form && !live) {
  const cards = [...document.querySelectorAll(".card")];
  const place = new Map(cards.map((card, index) => [card, index]));
  const texts = new Map(cards.map((card) => [card, card.textContent.toLowerCase()]));
  const gains = new Map(cards.map((card) => [card, JSON.parse(card.dataset.gains)]));
  const all = document.querySelector("[data-count]").textContent;
  const value = (name) => form.elements[name]?.value ?? "";

  const passes = (card) =>
    value("text").toLowerCase().split(/\s+/).every((word) => texts.get(card).includes(word)) &&
    (!value("feedback") || card.dataset.feedback === value("feedback")) &&
    (!Number(value("margin")) || Number(card.dataset.margin || -1) >= Number(value("margin"))) &&
    (!card.matches(".pair") || !value("dimension") || (gains.get(card)[value("dimension")] ?? 0) > 1e-9);

  const rank = (card) => {
    const gain = gains.get(card)[value("dimension") || "score"] ?? -Infinity;
    const ranks = { margin: -Number(card.dataset.margin || -1), gain: -gain, loss: gain === -Infinity ? Infinity : gain };
    return ranks[value("order")] ?? place.get(card);
  };

  const apply = () => {
    const parent = cards[0]?.parentNode;
    const end = document.querySelector("[data-nothing]");
    let shown = 0;
    [...cards].sort((a, b) => (rank(a) - rank(b)) || (place.get(a) - place.get(b))).forEach((card) => {
      card.hidden = !passes(card);
      shown += card.hidden ? 0 : 1;
      parent.insertBefore(card, end);
    });
    end.hidden = shown > 0;
    document.querySelector("[data-count]").textContent = shown === cards.length ? all : `${shown} of these ${cards.length}`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
}

document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, video, button") || event.ctrlKey || event.metaKey || event.altKey) return;
  const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  if (rel) document.querySelector(`a[rel=${rel}]`)?.click();
});
