/** Standard input, as much at a time as is wanted. */
export class StandardInput {
  readonly #chunks: AsyncIterator<Uint8Array> = process.stdin[Symbol.asyncIterator]();
  #rest: Uint8Array = new Uint8Array(0);

  /**
   * Reads until there are as many bytes as fit, or no more come.
   * @returns how many there are
   * @throws what went wrong with reading, or ended it
   */
  async fill(bytes: Uint8Array): Promise<number> {
    let done = 0;
    while (done < bytes.length) {
      if (this.#rest.length === 0) {
        const next = await this.#chunks.next();
        if (next.done) break;
        this.#rest = next.value;
      }
      const part = this.#rest.subarray(0, bytes.length - done);
      bytes.set(part, done);
      done += part.length;
      this.#rest = this.#rest.subarray(part.length);
    }
    return done;
  }
}
