"use strict";
(() => {
  const STEP_S = 5; // of the arrow keys
  const DRIFT_S = 0.05; // players further apart than this are set to the same place

  const sections = [...document.querySelectorAll(".file")];
  const players = new Map(); // of sections that were used
  let opened = null; // the one player that holds sounds
  let active = null; // the player that was used last

  const isPressed = (button) => button.getAttribute("aria-pressed") === "true";
  const press = (button, on) => button.setAttribute("aria-pressed", String(on));

  function clock(seconds) {
    const whole = Math.floor(seconds);
    const parts = [Math.floor(whole / 60) % 60, whole % 60].map((n) => String(n).padStart(2, "0"));
    return whole < 3600 ? parts.join(":") : `${Math.floor(whole / 3600)}:${parts.join(":")}`;
  }

  /** Resolves when a sound can play, or never will. */
  function settled(sound) {
    return new Promise((resolve) => {
      if (sound.readyState >= HTMLMediaElement.HAVE_FUTURE_DATA || sound.error) return resolve();
      sound.addEventListener("canplay", resolve, { once: true });
      sound.addEventListener("error", resolve, { once: true });
    });
  }

  /** The sounds of one file, which play together; switches tell which are heard. */
  class Player {
    constructor(section) {
      this.section = section;
      this.rows = [...section.querySelectorAll(".track")];
      this.button = section.querySelector(".play");
      this.slider = section.querySelector(".seek");
      this.output = section.querySelector("output");
      this.seconds = Number(section.dataset.seconds);
      this.selected = this.rows[0];
      this.sounds = new Map(); // by row, while this file is open
      this.playing = false;
      this.turn = 0; // of playing: what waits for an earlier one gives up
    }

    get leader() {
      return [...this.sounds.values()].find((sound) => !sound.error);
    }

    get position() {
      return Number(this.slider.value);
    }

    open() {
      if (opened === this) return;
      opened?.close();
      opened = this;
      for (const row of this.rows) {
        if (!row.dataset.src || row.classList.contains("failed")) continue;
        const sound = new Audio();
        sound.addEventListener("error", () => this.fail(row));
        sound.addEventListener("ended", () => sound === this.leader && this.end());
        sound.preload = "auto";
        sound.src = row.dataset.src;
        this.sounds.set(row, sound);
      }
      this.hear();
    }

    close() {
      this.pause();
      const sounds = [...this.sounds.values()];
      this.sounds.clear();
      for (const sound of sounds) {
        sound.removeAttribute("src");
        sound.load(); // lets go of the file
      }
      opened = null;
    }

    fail(row) {
      if (!this.sounds.has(row)) return; // closed
      row.classList.add("failed");
      row.querySelector(".told").textContent = "this browser cannot play it";
      for (const button of row.querySelectorAll("button")) {
        press(button, false);
        button.disabled = true;
      }
      this.hear();
      if (!this.leader) this.pause();
    }

    async play() {
      this.open();
      const turn = ++this.turn;
      this.playing = true;
      this.show();
      await Promise.all([...this.sounds.values()].map(settled));
      if (!this.playing || turn !== this.turn) return;
      this.move(this.position >= this.seconds - DRIFT_S ? 0 : this.position);
      const usable = [...this.sounds.values()].filter((sound) => !sound.error);
      const begun = await Promise.allSettled(usable.map((sound) => sound.play()));
      if (turn !== this.turn) return;
      if (!begun.some((one) => one.status === "fulfilled")) return this.pause();
      this.follow(turn);
    }

    pause() {
      this.playing = false;
      for (const sound of this.sounds.values()) sound.pause();
      this.show();
    }

    end() {
      this.pause();
      this.place(this.seconds);
    }

    toggle() {
      if (this.playing) this.pause();
      else this.play();
    }

    /** Keeps the sounds together and the playheads up to date, while it plays. */
    follow(turn) {
      if (!this.playing || turn !== this.turn) return;
      const now = this.leader.currentTime;
      for (const sound of this.sounds.values()) {
        const apart = Math.abs(sound.currentTime - now);
        if (apart > DRIFT_S && !sound.seeking && !sound.ended && !sound.error) {
          sound.currentTime = now;
        }
      }
      if (!this.leader.seeking) this.place(now);
      requestAnimationFrame(() => this.follow(turn));
    }

    move(seconds) {
      const to = Math.min(Math.max(seconds, 0), this.seconds);
      for (const sound of this.sounds.values()) if (!sound.error) sound.currentTime = to;
      this.place(to);
    }

    place(seconds) {
      this.slider.value = seconds;
      this.section.style.setProperty("--position", this.seconds ? seconds / this.seconds : 0);
      this.output.textContent = `${clock(seconds)} / ${clock(this.seconds)}`;
      this.slider.setAttribute("aria-valuetext", this.output.textContent);
    }

    solo(row, others = false) {
      const on = !isPressed(row.querySelector(".solo"));
      for (const each of this.rows) {
        if (each === row) press(each.querySelector(".solo"), on);
        else if (!others) press(each.querySelector(".solo"), false);
      }
      this.selected = row;
      this.hear();
    }

    mute(row) {
      const button = row.querySelector(".mute");
      press(button, !isPressed(button));
      this.selected = row;
      this.hear();
    }

    /** What is solo is heard, else all parts of the mixture; never what is muted. */
    hear() {
      const some = this.rows.some((row) => isPressed(row.querySelector(".solo")));
      for (const row of this.rows) {
        const wanted = some ? isPressed(row.querySelector(".solo")) : !("whole" in row.dataset);
        const heard = wanted && !isPressed(row.querySelector(".mute"));
        row.classList.toggle("silent", !heard);
        const sound = this.sounds.get(row);
        if (sound) sound.muted = !heard;
      }
    }

    show() {
      this.button.textContent = this.playing ? "Pause" : "Play";
    }
  }

  function playerOf(section) {
    if (!players.has(section)) players.set(section, new Player(section));
    return players.get(section);
  }

  function use(section) {
    active?.section.classList.remove("current");
    active = playerOf(section);
    section.classList.add("current");
    return active;
  }

  /** Pixels of a section's height that are seen. */
  function inSight(section) {
    const box = section.getBoundingClientRect();
    return Math.max(0, Math.min(box.bottom, innerHeight) - Math.max(box.top, 0));
  }

  /** The player that keys are for: what plays or was used, else that of which most is in sight. */
  function current() {
    if (active && !active.section.hidden && (active.playing || inSight(active.section))) {
      return active;
    }
    const shown = sections.filter((section) => !section.hidden);
    const heights = shown.map(inSight);
    const section = shown[heights.indexOf(Math.max(...heights))];
    return section && use(section);
  }

  function step(by) {
    const shown = sections.filter((section) => !section.hidden);
    const here = shown.indexOf(current()?.section);
    const next = shown[here + by];
    if (!next) return;
    const goesOn = active.playing;
    active.pause();
    use(next).section.scrollIntoView({ block: "start" });
    active.button.focus({ preventScroll: true });
    if (goesOn) active.play();
  }

  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target.matches("input[type=search]")) return;
    const native = event.target.closest("button, summary, a");
    const player = current();
    if (!player) return;
    const digit = /^[0-9]$/.test(event.key) ? Number(event.key) : null;
    if (digit !== null) {
      const row = player.rows.find((one) => Number(one.dataset.key) === digit);
      if (row && !row.querySelector(".solo").disabled) player.solo(row);
    } else if (event.key === " " && !native) player.toggle();
    else if (event.key === "ArrowLeft") player.move(player.position - STEP_S);
    else if (event.key === "ArrowRight") player.move(player.position + STEP_S);
    else if (event.key === "ArrowUp") step(-1);
    else if (event.key === "ArrowDown") step(1);
    else if (event.key === "m") player.mute(player.selected);
    else return;
    event.preventDefault();
  }

  function onClick(event) {
    const section = event.target.closest(".file");
    if (!section) return;
    const player = use(section);
    const row = event.target.closest(".track");
    const button = event.target.closest("button");
    const picture = event.target.closest(".picture");
    if (picture) {
      const box = picture.getBoundingClientRect();
      player.move(((event.clientX - box.left) / box.width) * player.seconds);
    } else if (button?.matches(".play")) player.toggle();
    else if (button?.matches(".solo")) player.solo(row, event.shiftKey);
    else if (button?.matches(".mute")) player.mute(row);
    if (button && event.detail) button.blur(); // so that the space bar plays, after a mouse
  }

  function onInput(event) {
    if (event.target.matches(".seek")) {
      use(event.target.closest(".file")).move(Number(event.target.value));
    } else if (event.target.id === "find") find(event.target.value);
  }

  const words = new Map(); // of sections, for the search
  function find(text) {
    const wanted = text.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const section of sections) {
      if (!words.has(section)) words.set(section, section.textContent.toLowerCase());
      section.hidden = !wanted.every((word) => words.get(section).includes(word));
      count += !section.hidden;
    }
    document.getElementById("count").textContent = `${count} of ${sections.length} files`;
  }

  const near = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        near.unobserve(target);
        for (const image of target.querySelectorAll("img[data-src]")) {
          image.src = image.dataset.src;
          image.removeAttribute("data-src");
        }
      }
    },
    { rootMargin: "600px" },
  );
  for (const section of sections) near.observe(section);

  document.getElementById("count").textContent = `${sections.length} files`;

  addEventListener("keydown", onKey);
  addEventListener("click", onClick);
  addEventListener("input", onInput);
  addEventListener("focusin", (event) => {
    const row = event.target.closest?.(".track");
    if (row) use(row.closest(".file")).selected = row;
  });
})();
