/** A plain NBD client, for requests that real clients don't send. One request at a time; fixed newstyle only. */

import { connect, type Socket } from "node:net";

/** Commands of the transmission phase. */
export const command = { read: 0, write: 1, disconnect: 2, flush: 3, trim: 4 } as const;

/** A request, with the data of a write. */
export interface NbdRequest {
  readonly command: number;
  readonly flags?: number;
  readonly offset: number;
  readonly length: number;
  readonly data?: Uint8Array;
}

const OPTION_MAGIC = "IHAVEOPT";
const REQUEST_MAGIC = 0x25609513;
const SIMPLE_REPLY_MAGIC = 0x67446698;
const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
const OPTION_EXPORT_NAME = 1;
const OPTION_STRUCTURED_REPLY = 8;
const REPLY_OFFSET_DATA = 1;
const REPLY_ERROR = 0x8001;
const FIXED_NEWSTYLE_NO_ZEROES = 3;

/** A connection in its transmission phase. Answers are 0, a positive errno value, or the data of a read. */
export class NbdClient {
  /** Bytes of the export. */
  readonly size: number;
  readonly #stream: ByteStream;
  readonly #early: readonly NbdRequest[];
  #cookie = 0;

  /** Connects to a Unix socket; `early` requests are sent with the last bytes of the handshake. */
  static async connect(path: string, structured: boolean, early: readonly NbdRequest[] = []): Promise<NbdClient> {
    const stream = new ByteStream(connect(path));
    await stream.take(18);
    const flags = Buffer.from([0, 0, 0, FIXED_NEWSTYLE_NO_ZEROES]);
    if (structured) {
      stream.send(flags, option(OPTION_STRUCTURED_REPLY));
      await stream.take(20);
    } else {
      stream.send(flags);
    }
    stream.send(option(OPTION_EXPORT_NAME), ...early.map((request) => encode(request, 0)));
    const chosen = await stream.take(10);
    return new NbdClient(stream, Number(chosen.readBigUInt64BE(0)), early);
  }

  private constructor(stream: ByteStream, size: number, early: readonly NbdRequest[]) {
    this.#stream = stream;
    this.size = size;
    this.#early = early;
  }

  /** The answers to the early requests. */
  async early(): Promise<(number | Buffer)[]> {
    const answers: (number | Buffer)[] = [];
    for (const request of this.#early) answers.push(await this.#answer(request, 0));
    return answers;
  }

  request(request: NbdRequest): Promise<number | Buffer> {
    const cookie = ++this.#cookie;
    this.#stream.send(encode(request, cookie));
    return this.#answer(request, cookie);
  }

  read(offset: number, length: number): Promise<number | Buffer> {
    return this.request({ command: command.read, offset, length });
  }

  write(offset: number, data: Uint8Array): Promise<number | Buffer> {
    return this.request({ command: command.write, offset, length: data.length, data });
  }

  /** Says good-bye and waits for the server to close the connection. */
  async disconnect(): Promise<void> {
    this.#stream.send(encode({ command: command.disconnect, offset: 0, length: 0 }, ++this.#cookie));
    await this.#stream.end();
  }

  async #answer(request: NbdRequest, cookie: number): Promise<number | Buffer> {
    const magic = (await this.#stream.take(4)).readUInt32BE(0);
    if (magic === SIMPLE_REPLY_MAGIC) {
      const header = await this.#stream.take(12);
      expectCookie(header.readBigUInt64BE(4), cookie);
      const error = header.readUInt32BE(0);
      return error === 0 && request.command === command.read ? this.#stream.take(request.length) : error;
    }
    if (magic !== STRUCTURED_REPLY_MAGIC) throw new Error(`a reply begins with 0x${magic.toString(16)}`);
    const header = await this.#stream.take(16);
    expectCookie(header.readBigUInt64BE(4), cookie);
    const payload = await this.#stream.take(header.readUInt32BE(12));
    if (header.readUInt16BE(0) !== 1) throw new Error("a reply in several chunks");
    switch (header.readUInt16BE(2)) {
      case 0:
        return 0;
      case REPLY_OFFSET_DATA:
        if (Number(payload.readBigUInt64BE(0)) !== request.offset) throw new Error("data of another offset");
        return payload.subarray(8);
      case REPLY_ERROR:
        return payload.readUInt32BE(0);
      default:
        throw new Error(`a reply of type ${header.readUInt16BE(2)}`);
    }
  }
}

function expectCookie(actual: bigint, expected: number): void {
  if (actual !== BigInt(expected)) throw new Error(`a reply to ${actual} instead of ${expected}`);
}

function option(number: number): Buffer {
  return Buffer.concat([Buffer.from(OPTION_MAGIC), Buffer.from([0, 0, 0, number, 0, 0, 0, 0])]);
}

function encode(request: NbdRequest, cookie: number): Buffer {
  const header = Buffer.alloc(28);
  header.writeUInt32BE(REQUEST_MAGIC, 0);
  header.writeUInt16BE(request.flags ?? 0, 4);
  header.writeUInt16BE(request.command, 6);
  header.writeBigUInt64BE(BigInt(cookie), 8);
  header.writeBigUInt64BE(BigInt(request.offset), 16);
  header.writeUInt32BE(request.length, 24);
  return Buffer.concat([header, request.data ?? Buffer.alloc(0)]);
}

/** Bytes from a socket in pieces of the wanted length. */
class ByteStream {
  readonly #socket: Socket;
  readonly #chunks: AsyncIterator<Buffer>;
  #rest: Buffer = Buffer.alloc(0);

  constructor(socket: Socket) {
    this.#socket = socket;
    this.#chunks = socket[Symbol.asyncIterator]();
  }

  send(...parts: Buffer[]): void {
    this.#socket.write(Buffer.concat(parts));
  }

  async take(count: number): Promise<Buffer> {
    while (this.#rest.length < count) {
      const { value, done } = await this.#chunks.next();
      if (done) throw new Error("the server closed the connection");
      this.#rest = Buffer.concat([this.#rest, value]);
    }
    const taken = this.#rest.subarray(0, count);
    this.#rest = this.#rest.subarray(count);
    return taken;
  }

  async end(): Promise<void> {
    const { done } = await this.#chunks.next();
    if (!done || this.#rest.length > 0) throw new Error("the server sent more than it was asked for");
  }
}
