// Runs on the audio thread: passes on each block of the first channel as it arrives.
registerProcessor(
  "capture",
  class extends AudioWorkletProcessor {
    process([channels]) {
      if (channels.length) this.port.postMessage(channels[0].slice());
      return true;
    }
  },
);
