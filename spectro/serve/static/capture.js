// Runs beside the sound card: hands each block of the first channel over as it comes.
registerProcessor(
  "capture",
  class extends AudioWorkletProcessor {
    process([channels]) {
      if (channels.length) this.port.postMessage(channels[0].slice());
      return true;
    }
  },
);
