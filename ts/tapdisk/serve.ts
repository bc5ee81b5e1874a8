import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { interruptible } from "../tools/cli/interrupt.ts";
import { DiskThread } from "./disk-thread.ts";
import { type Address, formatUri } from "./listen.ts";
import type { DiskOptions } from "./messages.ts";
import type { NbdExport } from "./nbd-handshake.ts";
import { NbdServer } from "./nbd-server.ts";
import { type PortModule, portModule } from "./port.ts";
import { RingServer } from "./ring-server.ts";

/** What to serve, and where. Without any address it is NBD on a Unix socket in a new folder. */
export interface ServeOptions {
  readonly disk: DiskOptions;
  readonly nbd: Address | undefined;
  readonly ring: Address | undefined;
}

/** The largest payload is what clients expect when nothing is said, and what the port's buffers are made for. */
const BLOCK_SIZE = { minimum: 512, preferred: 4096, maximum: 32 << 20 } as const;

/**
 * Serves a disk until SIGTERM or SIGINT, then closes it. Prints a URI for each front end when all are ready.
 * @throws what kept the disk from being opened, served or closed.
 */
export async function serve(options: ServeOptions): Promise<void> {
  const { promise: stopped, resolve: stop } = Promise.withResolvers<void>();
  // Patient: a second signal must not end the program while it makes things durable.
  await interruptible(stop, () => serveUntil(stopped, options), true);
}

async function serveUntil(stopped: Promise<void>, options: ServeOptions): Promise<void> {
  const port = portModule();
  const thread = await DiskThread.open(port, options.disk);
  for (const warning of thread.disk.warnings) {
    say(`warning: ${warning}`);
  }
  const servers = new Servers(port, thread, options);
  try {
    const uris = await servers.open();
    process.stdout.write(`${uris.join("\n")}\n`);
    await Promise.race([stopped, thread.ended]);
  } finally {
    servers.close();
    await thread.close().finally(() => servers.removeFolder());
  }
}

/** The servers of one disk. */
class Servers {
  readonly #port: PortModule;
  readonly #thread: DiskThread;
  readonly #options: ServeOptions;
  readonly #open: { close(): void }[] = [];
  #folder: string | undefined;

  constructor(port: PortModule, thread: DiskThread, options: ServeOptions) {
    this.#port = port;
    this.#thread = thread;
    this.#options = options;
  }

  /** Opens those that are wanted. Returns their URIs. */
  async open(): Promise<string[]> {
    const { nbd, ring, disk } = this.#options;
    const uris: string[] = [];
    if (nbd !== undefined || ring === undefined) {
      const server = new NbdServer(this.#port, this.#thread, nbdExport(disk, this.#thread), say);
      this.#open.push(server);
      uris.push(formatUri("nbd", await server.listen(nbd ?? (await this.#privateAddress()))));
    }
    if (ring !== undefined) {
      const { sectors } = this.#thread.disk;
      const server = new RingServer(this.#port, this.#thread, { sectors, readOnly: disk.readOnly });
      this.#open.push(server);
      uris.push(formatUri("ring", await server.listen(ring)));
    }
    return uris;
  }

  /** Lets no new clients in. */
  close(): void {
    for (const server of this.#open) {
      server.close();
    }
  }

  /** Removes the folder of the socket that nobody named. */
  async removeFolder(): Promise<void> {
    if (this.#folder !== undefined) {
      await rm(this.#folder, { recursive: true, force: true });
    }
  }

  /** A Unix socket that only this user can reach. */
  async #privateAddress(): Promise<Address> {
    this.#folder = await mkdtemp(join(tmpdir(), "tapdisk-"));
    return { kind: "unix", path: join(this.#folder, "nbd") };
  }
}

function say(message: string): void {
  process.stderr.write(`tapdisk: ${message}\n`);
}

function nbdExport(options: DiskOptions, { disk }: DiskThread): NbdExport {
  const [leaf] = options.stack;
  return {
    name: basename(leaf.name),
    description: `${disk.type} disk of ${disk.sizeBytes} bytes in ${leaf.name}`,
    size: disk.sizeBytes,
    readOnly: options.readOnly,
    trim: true,
    writeZeroes: true,
    fastZero: true,
    blockSize: BLOCK_SIZE,
  };
}
