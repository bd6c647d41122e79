document.addEventListener("click", (event) => {
  const segment = event.target.closest("[data-start]");
  const player = document.querySelector(".spectro-course audio");
  if (!segment || !player) return;
  player.currentTime = Number(segment.dataset.start);
  player.play();
});
