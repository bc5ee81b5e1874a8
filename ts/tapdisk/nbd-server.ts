import { createServer, type Server, type Socket } from "node:net";
import type { DiskThread } from "./disk-thread.ts";
import { messageOf } from "./errors.ts";
import { type Address, listen } from "./listen.ts";
import { type HandshakeStep, type NbdExport, NbdHandshake } from "./nbd-handshake.ts";
import type { PortModule } from "./port.ts";
import { socketFd } from "./socket-handle.ts";

/** What a server of NBD connections may be told. */
export interface NbdServerLimits {
  /** For a whole handshake. */
  readonly handshakeMs: number;
  /** In their handshake and past it. */
  readonly connections: number;
}

const DEFAULT_LIMITS: NbdServerLimits = { handshakeMs: 10_000, connections: 128 };
/** When a TCP connection has been silent for so long, the kernel looks whether the client is still there. */
const KEEP_ALIVE_MS = 60_000;

/** Accepts NBD connections, shakes hands, and passes them on to the data plane of a disk. */
export class NbdServer {
  readonly #server: Server;
  readonly #port: Pick<PortModule, "duplicateFd">;
  readonly #thread: Pick<DiskThread, "attachNbd">;
  readonly #export: NbdExport;
  readonly #limits: NbdServerLimits;
  readonly #onWarning: (message: string) => void;
  readonly #shakingHands = new Set<Socket>();
  #attached = 0;

  /** `onWarning` gets what went wrong with a connection through no fault of its client. */
  constructor(
    port: Pick<PortModule, "duplicateFd">,
    thread: Pick<DiskThread, "attachNbd">,
    offered: NbdExport,
    onWarning: (message: string) => void,
    limits: NbdServerLimits = DEFAULT_LIMITS,
  ) {
    this.#port = port;
    this.#thread = thread;
    this.#export = offered;
    this.#limits = limits;
    this.#onWarning = onWarning;
    // Node must not send a FIN for us: the connection goes on without it.
    this.#server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
      this.#serve(socket).catch((error) => onWarning(`an NBD connection failed: ${messageOf(error)}`));
    });
  }

  /**
   * Starts to accept connections.
   * @returns the address, with the port that was chosen
   */
  listen(address: Address): Promise<Address> {
    return listen(this.#server, address, this.#onWarning);
  }

  /** Stops accepting and ends unfinished handshakes. Attached connections are the data plane's to end. */
  close(): void {
    this.#server.close();
    for (const socket of this.#shakingHands) {
      socket.destroy();
    }
  }

  async #serve(socket: Socket): Promise<void> {
    // Errors show where the socket is read or written.
    socket.on("error", () => {});
    if (this.#shakingHands.size + this.#attached >= this.#limits.connections) {
      socket.destroy();
      return;
    }
    socket.setKeepAlive(true, KEEP_ALIVE_MS);
    this.#shakingHands.add(socket);
    const timer = setTimeout(() => socket.destroy(), this.#limits.handshakeMs);
    try {
      const step = await shakeHands(socket, this.#export);
      if (step?.kind === "transmission" && !socket.destroyed) {
        await this.#attach(socket, step);
      }
    } finally {
      clearTimeout(timer);
      this.#shakingHands.delete(socket);
      socket.destroy();
    }
  }

  async #attach(socket: Socket, step: Extract<HandshakeStep, { kind: "transmission" }>): Promise<void> {
    // No turn of the event loop between the last read and closing Node's descriptor: nothing is read that is not passed on.
    const received = Buffer.concat([step.received, ...readBuffered(socket)]);
    const fd = this.#port.duplicateFd(socketFd(socket));
    socket.destroy();
    this.#attached++;
    const onClosed = () => {
      this.#attached--;
    };
    const connection = {
      socket: fd,
      received: Uint8Array.from(received),
      structuredReplies: step.structuredReplies,
      allocationContext: step.allocationContext,
      readOnly: this.#export.readOnly,
    };
    await this.#thread.attachNbd(connection, onClosed).catch((error: unknown) => {
      onClosed();
      throw error;
    });
  }
}

/** Runs a handshake to its end. Yields nothing when the client went away. */
async function shakeHands(socket: Socket, offered: NbdExport): Promise<HandshakeStep | undefined> {
  const handshake = new NbdHandshake(offered);
  try {
    await send(socket, NbdHandshake.greeting());
    for await (const bytes of socket.iterator({ destroyOnReturn: false })) {
      const step = handshake.receive(bytes);
      await send(socket, handshake.takeReply());
      if (step.kind !== "more") {
        return step;
      }
    }
    return undefined;
  } catch {
    return undefined;
  }
}

/** Sends bytes; resolves when the kernel has them. */
function send(socket: Socket, bytes: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    socket.write(bytes, (error) => (error ? reject(error) : resolve()));
  });
}

function readBuffered(socket: Socket): Buffer[] {
  const chunks: Buffer[] = [];
  for (let chunk: unknown = socket.read(); chunk instanceof Buffer; chunk = socket.read()) {
    chunks.push(chunk);
  }
  return chunks;
}
