// Calls the service's API like any other client. The key is kept in the tab's session and nowhere else.

const KEY = "spectro-key";

/** An error answer of the service. */
export class Refusal extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** Return whether a key can be sent at all. */
export const possible = (key) => /^[^\x00-\x1f\x7f]+$/.test(key);

/**
 * Send a request; prompt the user for the key if the service needs one.
 *
 * @param path     relative to the page's address
 * @param options  `query` (null values are left out), `file` to upload, `signal` to abort, `onUpload` gets 0 to 1
 * @param askKey   called with whether a key was refused; resolves to a key, or rejects if the user cancels
 */
export async function ask(path, options, askKey) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    try {
      return await send(path, options, key);
    } catch (error) {
      if (error.status !== 401) throw error;
      if (sessionStorage.getItem(KEY) === key) sessionStorage.removeItem(KEY);
      if (!sessionStorage.getItem(KEY)) sessionStorage.setItem(KEY, await askKey(key !== null));
    }
  }
}

/** Return the UTF-8 bytes of a text, one per character: headers cannot hold other characters. */
const bytes = (text) => String.fromCharCode(...new TextEncoder().encode(text));

function send(path, { query = {}, file = null, signal = null, onUpload = () => {} }, key) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch does not report upload progress
    const given = Object.entries(query).filter(([, value]) => value !== null && value !== "");
    request.open(file ? "POST" : "GET", `${path}${given.length ? "?" : ""}${new URLSearchParams(given)}`);
    if (key !== null) request.setRequestHeader("X-API-Key", bytes(key));
    request.upload.onprogress = (event) => event.lengthComputable && onUpload(event.loaded / event.total);
    request.upload.onload = () => onUpload(1);
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    request.onerror = () => reject(new Refusal(0, "The service cannot be reached. Check that it is running and try again."));
    request.onload = () => {
      let answer = null;
      try {
        answer = JSON.parse(request.responseText);
      } catch {
        answer = { detail: `The service answered ${request.status} without an explanation.` }; // such as a proxy's page
      }
      if (request.status === 200) resolve(answer);
      else reject(new Refusal(request.status, String(answer.detail)));
    };
    signal?.addEventListener("abort", () => request.abort());
    if (signal?.aborted) return void reject(new DOMException("cancelled", "AbortError"));
    const form = new FormData();
    if (file) form.append("file", file, file.name);
    request.send(file ? form : null);
  });
}
