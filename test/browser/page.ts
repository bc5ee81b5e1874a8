/** The page: reads the disk by itself and in a worker, and tells the test both readings. */

import { readDisk } from "./read-disk.ts";

const worker = new Worker("worker.js", { type: "module" });
const inWorker = new Promise((resolve, reject) => {
  worker.onmessage = (event) => resolve(event.data);
  worker.onerror = (event) => reject(new Error(event.message));
});

async function readings(): Promise<unknown> {
  try {
    return { inPage: await readDisk(), inWorker: await inWorker };
  } catch (error) {
    return { error: String(error) };
  }
}

await fetch("result", { method: "POST", body: JSON.stringify(await readings()) });
