/** NBD clients that come, read once, and go. */

import { once } from "node:events";
import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

const PATIENCE_MS = 20_000;

/** NBD at its shortest: the default export by NBD_OPT_EXPORT_NAME, then one read of 4 KiB. */
export async function readFirstSectors(path: string): Promise<void> {
  const socket = connect(path);
  // It shows where one waits.
  socket.on("error", () => {});
  const signal = AbortSignal.timeout(PATIENCE_MS);
  let received = Buffer.alloc(0);
  socket.on("data", (chunk: Buffer) => {
    received = Buffer.concat([received, chunk]);
  });
  const take = async (bytes: number) => {
    while (received.length < bytes) {
      await once(socket, "data", { signal });
    }
    const taken = received.subarray(0, bytes);
    received = received.subarray(bytes);
    return taken;
  };
  try {
    await take(18);
    const options = Buffer.alloc(20);
    // Without the 124 zeros.
    options.writeUInt32BE(3, 0);
    options.write("IHAVEOPT", 4, "latin1");
    options.writeUInt32BE(1, 12);
    socket.write(options);
    await take(10);
    const read = Buffer.alloc(28);
    read.writeUInt32BE(0x25609513, 0);
    read.writeUInt32BE(4096, 24);
    socket.write(read);
    const error = (await take(16)).readUInt32BE(4);
    if (error !== 0) {
      throw new Error(`NBD: a read failed with error ${error}`);
    }
    await take(4096);
  } finally {
    socket.destroy();
  }
}

export interface Visits {
  /** How many came so far. */
  readonly count: number;
  /**
   * Lets no more come.
   * @returns how many there were
   * @throws what went wrong with one of them
   */
  end(): Promise<number>;
}

/** Lets clients come at this pace, one after the other. */
export function startVisits(path: string, perSecond: number): Visits {
  const started = performance.now();
  let count = 0;
  let ended = false;
  const visiting = (async () => {
    while (!ended) {
      const early = (1000 * count) / perSecond - (performance.now() - started);
      if (early > 0) {
        await sleep(early);
      } else {
        await readFirstSectors(path);
        count++;
      }
    }
  })();
  // Whoever ends them sees the error.
  visiting.catch(() => {});
  return {
    get count() {
      return count;
    },
    end: async () => {
      ended = true;
      await visiting;
      return count;
    },
  };
}
